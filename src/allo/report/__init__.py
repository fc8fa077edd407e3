"""The report: run folders in, one self-contained HTML page and its Markdown tables out.

`read.view` does the reading, `page.render` is pure, `allo.stages.report` does the writing.
"""
