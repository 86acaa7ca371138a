"""The two stages: harvest fills an activation store; train, eval and fine-tune read from it.

They meet only on disk. What each can be told is in `pipeline.config`.
"""
