"""Many recipes at once, again and again: selection, acceptance, reports, timetables."""
