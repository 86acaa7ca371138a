"""The two stages: harvest fills an activation store; train, eval and fine-tune read from it.

They meet only on disk. Start at `pipeline.harvest`, `pipeline.train`, `pipeline.evaluate` and
`pipeline.finetune`; what each can be told is in `pipeline.config`.
"""
