"""What is known of a run, as the places take it where people look at features and compare SAEs."""
