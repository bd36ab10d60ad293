"""x"""


class Docker:
    def __init__(self, *a, **k):
        pass
