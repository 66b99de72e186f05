"""What the reference implementations say, run by a Python that has torch, transformers and timm.

python tests/encoders/reference.py tiny > tests/encoders/reference.json
python tests/encoders/reference.py full FOLDER dinov2-small clip-base-32 …

`tiny` prints, of small networks whose weights are drawn by name, the shapes of the weights and the
outputs. `full` writes, of networks of their real size, NAME.safetensors with random weights and
NAME.npz with images and outputs. The suite reads the first; `make test-reference` makes the second.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 28


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of a name, the same everywhere."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.normal(0, 0.4, shape)
    return (values + (1 if name.endswith(("norm.weight", "lambda1")) else 0)).astype(np.float32)


def images(size: int) -> np.ndarray:
    """Standardised pixels, float32 (2, size, size, 3)."""
    return np.random.default_rng(0).normal(0, 1, (2, size, size, 3)).astype(np.float32)


def tiny() -> dict[str, Any]:
    """The small networks by name."""
    import timm
    import transformers as hf

    vit = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14}
    dino = {**vit, "image_size": 42}
    timm_vit = {"patch_size": 14, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 0}
    # Stages of other widths, so that no tensor fits in another's place.
    widths = [4, 8, 12, 16]
    return {
        "hf-dinov2": hf.Dinov2Model(hf.Dinov2Config(**dino)),
        "hf-dinov2-registers": hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**dino)),
        "hf-vit": hf.ViTModel(
            hf.ViTConfig(**vit, image_size=SIZE, intermediate_size=32), add_pooling_layer=False
        ),
        "hf-clip": hf.CLIPVisionModel(
            hf.CLIPVisionConfig(**vit, image_size=SIZE, intermediate_size=32)
        ),
        "timm-vit": timm.models.VisionTransformer(SIZE, init_values=1e-5, **timm_vit),
        "timm-registers": timm.models.VisionTransformer(
            SIZE, reg_tokens=4, no_embed_class=True, init_values=1e-5, **timm_vit
        ),
        "hf-convnext": hf.ConvNextModel(
            hf.ConvNextConfig(hidden_sizes=widths, depths=[1, 1, 2, 1])
        ),
        "hf-dinov3-convnext": hf.DINOv3ConvNextModel(
            hf.DINOv3ConvNextConfig(hidden_sizes=widths, depths=[1, 1, 2, 1])
        ),
        "timm-convnext": timm.models.ConvNeXt(dims=widths, depths=(1, 1, 2, 1), num_classes=0),
    }


def full(name: str) -> Any:
    """A network of the catalogue in its real size."""
    import transformers as hf

    family, size, *_ = name.split("-")
    width, depth, heads = {
        "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)
    }[size]  # fmt: skip
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }
    patch = int(name.rsplit("-", 1)[1]) if name[-1].isdigit() else 16
    wide = {**sizes, "intermediate_size": 4 * width, "patch_size": patch, "image_size": 224}
    if family == "dinov2" and name.endswith("registers"):
        config = hf.Dinov2WithRegistersConfig(**sizes, patch_size=14, image_size=518)
        return hf.Dinov2WithRegistersModel(config)
    if family == "dinov2":
        return hf.Dinov2Model(hf.Dinov2Config(**sizes, patch_size=14, image_size=518))
    if family == "clip":
        return hf.CLIPVisionModel(hf.CLIPVisionConfig(**wide))
    if family == "convnext":
        depths = [3, 3, 9 if size == "tiny" else 27, 3]
        first = {"tiny": 96, "small": 96, "base": 128, "large": 192}[size]
        widths = [first * 2**stage for stage in range(4)]
        return hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=widths, depths=depths))
    return hf.ViTModel(hf.ViTConfig(**wide), add_pooling_layer=False)


def outputs(model: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Class token and patches, or the last map, of channels-last pixels."""
    import torch

    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    model = model.eval()
    with torch.no_grad():
        if type(model).__module__.startswith("timm"):
            found = model.forward_features(given)
        elif hasattr(model.config, "hidden_sizes"):
            # DINOv3's flattens its last map and puts the pooled one before it.
            found = model(given, output_hidden_states=True).hidden_states[-1]
        else:
            found = model(given).last_hidden_state
            if "CLIP" in type(model).__name__:
                found = model.post_layernorm(found)
    values = found.numpy()
    if values.ndim == 4:
        return {"map": values.transpose(0, 2, 3, 1)}
    n_patches = next(
        n for n in sorted(((pixels.shape[1] // p) ** 2 for p in (14, 16, 32)), reverse=True)
        if n < values.shape[1]
    )  # fmt: skip
    side = int(n_patches**0.5)
    patches = values[:, -n_patches:].reshape(len(values), side, side, -1)
    return {"class_token": values[:, 0], "patch_tokens": patches}


def main() -> None:
    import torch
    from safetensors.numpy import load_file, save_file

    kind, *rest = sys.argv[1:]
    if kind == "tiny":
        found = {}
        for name, model in tiny().items():
            state = {key: drawn(key, tuple(v.shape)) for key, v in model.state_dict().items()}
            if name.startswith("hf"):
                # Its files have other names than its modules.
                with tempfile.TemporaryDirectory() as scratch:
                    model.save_pretrained(scratch)
                    path = Path(scratch) / "model.safetensors"
                    state = {key: drawn(key, v.shape) for key, v in load_file(path).items()}
                    save_file(state, path, metadata={"format": "pt"})
                    model = type(model).from_pretrained(scratch)
            else:
                model.load_state_dict({key: torch.from_numpy(v) for key, v in state.items()})
            size = 32 if "convnext" in name else SIZE
            found[name] = {
                "shapes": {key: list(values.shape) for key, values in state.items()},
                **{
                    part: [round(float(v), 6) for v in values.ravel()]
                    for part, values in outputs(model, images(size)).items()
                },
            }
        print(json.dumps(found, indent=None, separators=(",", ":")).replace('"},"', '"},\n"'))
        return
    folder = Path(rest[0])
    for name in rest[1:]:
        torch.manual_seed(0)
        model = full(name)
        for values in model.parameters():
            # Not the ones that are drawn by default: zeros and ones would hide a swap.
            with torch.no_grad():
                values += 0.02 * torch.randn_like(values)
        model.save_pretrained(folder / name)
        (folder / name / "model.safetensors").rename(folder / f"{name}.safetensors")
        arrays: Any = {"images": images(224), **outputs(model, images(224))}
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
