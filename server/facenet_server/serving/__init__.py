"""How an admitted item becomes an answer."""
