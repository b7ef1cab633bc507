"""The list of vendors: from the settings of a source to the source itself."""
