"""Data: text from files, data sets or the embedded shelf, cut into token windows that know their document."""
