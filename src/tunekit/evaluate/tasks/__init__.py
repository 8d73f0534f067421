"""evaluate/tasks"""
