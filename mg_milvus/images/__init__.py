"""From files to pictures: ``discover`` finds them, ``decode`` reads them."""
