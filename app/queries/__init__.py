"""The statements: one function, one statement."""


def members_of(row: str, columns: str) -> str:
    """`row`, which a function of the database returns as a member of what it `found`, column by column."""
    return ", ".join(f"(found.{row}).{column.strip()}" for column in columns.split(","))
