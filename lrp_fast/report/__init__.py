"""What a person reads of an attribution: a page (html), a terminal table (table), a plain record (record)."""
