"""The report's explorer: decisions over time, and each of them in full, inside one HTML file.

``moments`` is what it is fed with, ``packing`` puts that into a page, ``assembly`` puts the page
together from its sources in ``resource/report/``.
"""
