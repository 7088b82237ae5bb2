"""How keys and watermarks are compared and sorted on both sides. What is done with the rows found does not belong here.

Begin at `comparisons`.
"""
