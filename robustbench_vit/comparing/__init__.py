"""Records of a baseline and a candidate, compared sample by sample. No torch."""

from robustbench_vit.comparing.comparison import Comparison, Conclusion, Flipped, Item, Side

__all__ = ["Comparison", "Conclusion", "Flipped", "Item", "Side"]
