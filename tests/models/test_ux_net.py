import torch

from volsam.models.ux_net import UXNet


def test_ux_net_has_as_many_weights_as_its_paper_says():
    with torch.device("meta"):
        network = UXNet(1, 2)
    # 53.01 million in the table of 3DSAM-adapter.
    assert abs(sum(weight.numel() for weight in network.parameters()) - 53.01e6) < 0.01e6


def test_it_answers_at_the_size_of_the_image():
    network = UXNet(2, 3, (4, 8, 16, 32), (1, 1, 1, 1))
    assert network(torch.randn(1, 2, 32, 48, 32)).shape == (1, 3, 32, 48, 32)
