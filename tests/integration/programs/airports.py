def city_of(origin: str) -> str:
    return {"JFK": "Jamaica", "LGA": "Queens"}[origin]
