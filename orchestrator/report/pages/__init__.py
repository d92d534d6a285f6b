"""Reports as Markdown, HTML and image files."""
