"""The report: one self-contained HTML page and its Markdown tables, from run folders.

`read.view` reads, `page.render` is pure, and `allo.stages.report` writes.
"""
