import torch
from torch.testing import assert_close

from volsam.models.original_names import from_original


def test_weights_of_slices_gain_a_depth_of_one() -> None:
    ours = from_original(
        {
            "image_encoder.pos_embed": torch.zeros(1, 8, 9, 12),
            "image_encoder.patch_embed.proj.weight": torch.zeros(12, 3, 16, 16),
            "image_encoder.neck.2.weight": torch.zeros(6, 6, 3, 3),
            "mask_decoder.output_upscaling.3.weight": torch.zeros(8, 4, 2, 2),
        },
        "sam",
    )
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        "encoder.position": (1, 1, 8, 9, 12),
        "encoder.patches.weight": (12, 3, 1, 16, 16),
        "encoder.neck.mix.weight": (6, 6, 1, 3, 3),
        "mask_head.upscaling.steps.1.weight": (8, 4, 1, 2, 2),
    }


def test_a_position_matrix_of_x_and_y_takes_depth_height_and_width() -> None:
    name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    x, y = torch.randn(2, 6)
    ours = from_original({name: torch.stack([x, y])}, "sam")["prompt_encoder.code.matrix"]
    assert_close(ours, torch.stack([torch.zeros(6), y, x]))


def test_a_position_matrix_of_a_volume_is_kept() -> None:
    name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    matrix = torch.randn(3, 6)
    assert_close(from_original({name: matrix}, "sam_med3d")["prompt_encoder.code.matrix"], matrix)


def test_point_labels_become_one_table() -> None:
    rows = {f"prompt_encoder.point_embeddings.{label}.weight": torch.full((1, 4), float(label)) for label in range(4)}
    rows["prompt_encoder.not_a_point_embed.weight"] = torch.full((1, 4), -1.0)
    table = from_original(rows, "sam")["prompt_encoder.labels.weight"]
    assert table[:, 0].tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]


def test_a_student_encoder_is_found_without_its_prefix() -> None:
    assert list(from_original({"blocks.2.attn.qkv.bias": torch.zeros(3)}, "fastsam3d_encoder")) == [
        "encoder.blocks.2.attention.qkv.bias"
    ]


def test_unknown_names_are_kept_so_that_loading_can_name_them() -> None:
    assert list(from_original({"mask_decoder.surprise": torch.zeros(1)}, "sam")) == ["mask_decoder.surprise"]
