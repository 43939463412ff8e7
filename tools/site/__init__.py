"""What mkdocs.yml needs to make a site of docs/, pages of the repository's top and docstrings."""
