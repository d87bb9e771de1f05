"""What a person reads of an attribution: a page (html), a terminal table (table), a plain record (record), and what a
notebook shows (notebook)."""
