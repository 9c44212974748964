"""A comparison as text, as Markdown for a pull request, as JUnit XML and as JSON."""

from robustbench_vit.comparing.render.as_json import as_json
from robustbench_vit.comparing.render.junit import junit
from robustbench_vit.comparing.render.markdown import markdown
from robustbench_vit.comparing.render.text import text

__all__ = ["as_json", "junit", "markdown", "text"]
