-- An index over the text itself holds a third of a page; a key kept aside may be longer, and be kept aside for
-- that. A hash index holds numbers.
drop index cdc_dead_letter_key;
create index cdc_dead_letter_key on cdc_dead_letter using hash (key_text);
