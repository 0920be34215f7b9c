"""Recipes, their steps, and the engines that run them over shards."""
