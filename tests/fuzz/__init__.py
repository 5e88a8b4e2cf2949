"""Hostile image files by the thousand: ``seeds`` makes sound ones, ``mutate`` spoils them, ``run`` decodes them."""
