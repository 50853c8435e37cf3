"""What fine-tuning must beat: recommenders that know interactions and no text, one a file, one contract (`model`).

All are linear in a user's history: `scores(history) = history @ S` for some items × items matrix S. An item without
interactions has nothing in S, so it scores 0 with everyone, and two such items always tie: none of these can rank
brand-new items. (Popularity ignores the history.)
"""
