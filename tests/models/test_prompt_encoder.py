import math

import pytest
import torch
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.prompt_encoder import FourierCode, PromptBatch, PromptConfig, PromptEncoder

CONFIG = PromptConfig(image=(8, 16, 24), grid=(2, 4, 6), width=12)
POINTS = torch.tensor([[[1.0, 2.5, 3.0], [7.0, 15.0, 23.0]]])
LABELS = torch.tensor([[1, 0]])
BOX = torch.tensor([[[[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]]]])


def a_prompt_encoder(**changes: object) -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(CONFIG.model_copy(update=changes)).eval()


def test_nothing_said_gives_no_tokens_and_the_code_for_no_mask() -> None:
    encoder = a_prompt_encoder()
    tokens, dense = encoder(PromptBatch())
    assert tokens.shape == (1, 0, 12)
    assert_close(dense.flatten(), encoder.no_mask)


def test_points_end_with_one_that_is_none() -> None:
    encoder = a_prompt_encoder()
    tokens, _ = encoder(PromptBatch(POINTS, LABELS))
    assert tokens.shape == (1, 3, 12)
    assert_close(tokens[0, 2], encoder.labels.weight[0])


def test_a_label_that_fills_up_a_list_says_nothing_of_a_place() -> None:
    encoder = a_prompt_encoder()
    elsewhere = POINTS + torch.tensor([[[0.0], [3.0]]])
    labels = torch.tensor([[1, -1]])
    assert_close(encoder(PromptBatch(POINTS, labels))[0], encoder(PromptBatch(elsewhere, labels))[0])


def test_a_click_inside_differs_from_one_outside_by_its_label_alone() -> None:
    encoder = a_prompt_encoder()
    inside, outside = (encoder(PromptBatch(POINTS, torch.full((1, 2), label)))[0] for label in (1, 0))
    assert_close(inside[0, 0] - outside[0, 0], encoder.labels.weight[2] - encoder.labels.weight[1])


def test_a_box_is_its_two_corners_and_needs_no_filling() -> None:
    encoder = a_prompt_encoder()
    tokens, _ = encoder(PromptBatch(POINTS, LABELS, BOX))
    assert tokens.shape == (1, 4, 12)
    corners = encoder(PromptBatch(BOX[:, 0], torch.ones(1, 2, dtype=torch.long)))[0][:, :2]
    shift = encoder.labels.weight[3:] - encoder.labels.weight[2]
    assert_close(tokens[:, 2:], corners + shift)


def test_several_boxes_are_several_pairs() -> None:
    tokens, _ = a_prompt_encoder()(PromptBatch(boxes=BOX.repeat(2, 3, 1, 1)))
    assert tokens.shape == (2, 6, 12)


def test_a_mask_becomes_an_image_on_the_grid() -> None:
    _, dense = a_prompt_encoder()(PromptBatch(mask=torch.randn(2, 1, 8, 16, 24)))
    assert dense.shape == (2, 12, 2, 4, 6)
    _, dense = a_prompt_encoder(mask_stride=(1, 2, 2))(PromptBatch(mask=torch.randn(1, 1, 2, 16, 24)))
    assert dense.shape == (1, 12, 2, 4, 6)


def test_a_box_is_refused_by_a_model_without_boxes() -> None:
    with pytest.raises(BadInput, match="takes no boxes"):
        a_prompt_encoder(boxes=False)(PromptBatch(boxes=BOX))


def test_points_without_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="without labels"):
        a_prompt_encoder()(PromptBatch(points=POINTS))


def test_a_click_on_the_centre_of_a_patch_has_the_code_of_its_token() -> None:
    encoder = a_prompt_encoder()
    centre = torch.tensor([[[1.5, 9.5, 21.5]]])  # of patch (0, 2, 5): four voxels from 0, 8 and 20
    token = encoder(PromptBatch(centre, torch.tensor([[0]])))[0][0, 0] - encoder.labels.weight[1]
    assert_close(token, encoder.code.of_grid[0, 2, 5])


def test_published_position_codes_swap_two_axes_of_the_grid_but_not_of_clicks() -> None:
    torch.manual_seed(0)
    plain = FourierCode(12, (2, 2, 3), ("sin", "cos"), (0, 1, 2))
    swapped = FourierCode(12, (2, 2, 3), ("sin", "cos"), (1, 0, 2))
    swapped.load_state_dict(plain.state_dict())
    assert_close(swapped.of_grid, plain.of_grid.transpose(0, 1))
    at = torch.rand(4, 3)
    assert_close(swapped(at), plain(at))


def test_a_code_has_as_many_parts_as_waves() -> None:
    code = FourierCode(12, (1, 1, 1), ("sin", "cos", "sin"), (0, 1, 2))
    at = torch.rand(5, 3)
    angles = 2 * math.pi * (2 * at - 1) @ code.matrix
    assert_close(code(at), torch.cat([angles.sin(), angles.cos(), angles.sin()], -1))


def test_loading_weights_renews_the_code_of_the_grid() -> None:
    one, other = (FourierCode(12, (2, 3, 4), ("sin", "cos"), (0, 1, 2)) for _ in range(2))
    assert (one.of_grid - other.of_grid).abs().max() > 1e-3
    other.load_state_dict(one.state_dict())
    assert_close(other.of_grid, one.of_grid)
    assert set(one.state_dict()) == {"matrix"}


def test_weights_may_be_put_in_place_of_empty_ones() -> None:
    with torch.device("meta"):
        empty = PromptEncoder(CONFIG)
    full = a_prompt_encoder()
    empty.load_state_dict(full.state_dict(), assign=True)
    assert_close(empty.code.of_grid, full.code.of_grid)
    assert_close(empty(PromptBatch(POINTS, LABELS))[0], full(PromptBatch(POINTS, LABELS))[0])
