"""The page: one self-contained HTML file that shows a program as a graph, a schedule and text.

`template.html` and `style.css` are its form; the scripts, in the order in which they are put in:

    layout.js   from a view to positions, with ELK (also run by `inspection.svg`)
    model.js    the program as the page asks about it
    graph.js    the graph, drawn by D3
    chart.js    the schedule chart
    panel.js    the panel at the right
    app.js      the page's state, what changes it, and its header
    search.js   the search
    controls.js playing, keys, buttons; starts the page

`vendor/` holds ELK and D3 with their licences.
"""

from pccompile.inspection.page.write import page, page_data

__all__ = ["page", "page_data"]
