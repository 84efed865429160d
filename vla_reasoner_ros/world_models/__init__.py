"""World models behind one protocol; one file per implementation, imported when named."""
