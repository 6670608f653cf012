"""What the command line shows to people: rich tables, imported only where they are printed."""
