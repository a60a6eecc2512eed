"""How the book's numbers came about: data, trainings, records, claims, figures, the command."""
