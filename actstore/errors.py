"""What can be wrong with a store."""


class StoreError(Exception):
    """A store is missing, unfinished, damaged, in use, or not what the caller asked for."""


class NonFiniteError(StoreError):
    """Activations handed to a writer hold NaN or infinity; their shard was not stored.

    Attributes:
        site: Where the value stood.
        context_id: Which context of the store, counted from its start.
        position: Which token of that context.
    """

    def __init__(self, *, site: str, context_id: int, position: int) -> None:
        super().__init__(
            f"{site} is not finite in context {context_id}, position {position}; "
            "its shard was not stored, try another precision"
        )
        self.site = site
        self.context_id = context_id
        self.position = position
