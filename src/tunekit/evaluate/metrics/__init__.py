"""evaluate/metrics"""
