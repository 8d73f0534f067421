"""The recipe with every default, derived number and hardware choice resolved: frozen, printed, saved, handed on."""
