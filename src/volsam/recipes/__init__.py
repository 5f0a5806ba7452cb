"""What a name stands for: a model that can be loaded, or a method that makes one.

- here: names, files and folders of weights, and what is loaded from them
- `families`: the published networks, told from their weights alone
- `methods`: what can be trained on a dataset, or distilled
- `bench`: what is raced against what
"""
