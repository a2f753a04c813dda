def polite(text: str) -> str:
    return f"dear {text}"
