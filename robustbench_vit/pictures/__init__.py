"""Contact sheets of a record: clean and adversarial images, their difference, and what the model looks at."""

from robustbench_vit.pictures.sheet import check_drawable, contact_sheet, ready, save_pictures

__all__ = ["check_drawable", "contact_sheet", "ready", "save_pictures"]
