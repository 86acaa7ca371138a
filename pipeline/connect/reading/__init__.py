"""What a connector says: equations, relations, and the effects of removing inputs."""
