"""Gymnasium: observation, action, reward, scenarios and rendering."""
