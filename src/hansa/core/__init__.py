"""The words of Hansa: ids, events, commands, errors. Pure; knows nobody."""
