"""The coordinator: a pure core, its asyncio shell, one lane for each facility."""
