"""Base images: recipes, building, fetching, the store.

Public: `ensure.ensure_image`, `store.ImageStore`, `recipe.load_recipe`.
"""
