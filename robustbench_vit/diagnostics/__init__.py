"""What a model is like, apart from how robust it is: norms of its layers, …"""
