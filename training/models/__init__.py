"""Commands that make the models which training starts from; nothing is trained here.

Nothing imports from this folder, and it knows neither stage.
"""
