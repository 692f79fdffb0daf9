"""The network of section 4.1, with the losses of section 4.2 and the head of 4.4.

Names are MAE's where the method is MAE's (He et al. 2022, the paper's reference [12]).
:mod:`patchifier.nn.fast` computes the same functions in less time.

Shapes: B clips, N patches, P patches of all clips, V visible patches of a clip, M mel bands, T
frames in a patch, D embed_dim. ``valid`` (B, N) bool is False for padding; None means that there is
none. ``mask`` (B, N) bool is True for the patches to predict.
"""

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.config import Config, ModelConfig
from patchifier.nn.equivariant import ESTIMATORS
from patchifier.nn.masking import gather, masked_scatter, masked_select, pack, scatter, visible
from patchifier.nn.pitch import PitchModules
from patchifier.nn.transformer import EPSILON, PatchColumnTransformer, TransformerEncoder
from patchifier.nn.whitening import Whitening


class FeatureExtractor(nn.Module):
    """Down modules of 3 x 3 convolutions, the first of each with stride 2 instead of pooling (4.1).

    Pitch bands, the last rows of a patch, pass through modules of their own.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, n_mels = config.model, config.spectrogram.n_mels
        channels = model.channels
        self.down = nn.Sequential(
            *(
                down_module(before, after, model.n_convolutions)
                for before, after in itertools.pairwise((1, *channels))
            )
        )
        self.n_mels, self.mean = n_mels, model.map_pooling == "mean"
        cells = n_mels * model.patch_frames // 4 ** len(channels)  # of the last map: 2 x 1
        size = channels[-1] if self.mean else channels[-1] * cells
        if config.spectrogram.n_pitch_bands:
            self.pitch = PitchModules(config)
            size += self.pitch.size
        D = model.embed_dim
        self.to_vector = nn.Identity() if size == D else nn.Linear(size, D)

    def forward(self, patches: Tensor) -> Tensor:
        """Turn patches (P, 1, M, T) into vectors (P, D)."""
        rows = patches.squeeze(1)  # (P, M, T)
        maps = self.maps(rows[:, : self.n_mels])  # (P, C, M / 32, T / 32)
        features = maps.mean((-2, -1)) if self.mean else maps.flatten(1)
        if rows.shape[1] > self.n_mels:
            features = torch.cat([features, self.pitch(rows)], dim=1)
        return self.to_vector(features)  # (P, D)

    def maps(self, mel: Tensor) -> Tensor:
        """Turn mel bands (P, M, T) into maps (P, C, M / 32, T / 32)."""
        return self.down(mel[:, None])


def down_module(before: int, channels: int, convolutions: int) -> nn.Sequential:
    """Convolutions that halve height and width together; batch norm has the bias."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        stride = 1 if index else 2
        layers += [
            nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        before = channels
    return nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """A BERT encoder of patch vectors, with learnt positions, CLS and mask token (4.1, 4.2)."""

    def __init__(self, config: ModelConfig, *, layers: int, mask_token: bool = True) -> None:
        super().__init__()
        D = config.embed_dim
        self.cls = nn.Parameter(torch.zeros(D))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(D))
        self.plain = config.position_embedding == "plain"
        normalise = config.vector_norm == "layer"  # vectors and positions start at one scale
        self.vector_norm = nn.LayerNorm(D, elementwise_affine=False) if normalise else nn.Identity()
        self.positions = nn.Parameter(torch.zeros(1 + config.max_patches, D))  # CLS first
        self.norm = nn.Identity() if self.plain else nn.LayerNorm(D, eps=EPSILON)
        self.dropout = nn.Identity() if self.plain else nn.Dropout(config.dropout)
        self.encoder = TransformerEncoder(config, layers)
        self.last_norm = nn.LayerNorm(D, eps=EPSILON) if config.norm_first else nn.Identity()

    def forward(
        self,
        vectors: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        ids_keep: Tensor | None = None,
        valid_keep: Tensor | None = None,
    ) -> list[Tensor]:
        """Turn vectors (B, N, D) into the sequence (B, 1 + N, D) after each layer, CLS first.

        Parameters
        ----------
        vectors : Tensor, shape (B, N, D)
        mask, valid : Tensor, shape (B, N), bool
            The mask token replaces vectors where `mask` is True.
        ids_keep, valid_keep : Tensor, shape (B, V)
            The sequence holds only the patches at these indices; `valid_keep` is False for padding.
        """
        x = self.embed(vectors, mask, valid)  # (B, 1 + N, D)
        if ids_keep is not None:
            x = torch.cat([x[:, :1], gather(x[:, 1:], ids_keep)], dim=1)  # (B, 1 + V, D)
            valid = valid_keep
        padded = valid is not None and not valid.all()
        return self.forward_layers(x, valid if padded else None)

    def embed(
        self, vectors: Tensor, mask: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """BERT's embedding (B, 1 + N, D): mask tokens, CLS and positions."""
        B, N, D = vectors.shape
        vectors = self.vector_norm(vectors)
        if mask is not None:
            vectors = torch.where(mask[..., None], self.mask_token.to(vectors.dtype), vectors)
        cls = self.cls if self.plain else self.cls + self.positions[0]
        vectors = vectors + self.positions_for(N, valid)
        return self.dropout(self.norm(torch.cat([cls.expand(B, 1, D), vectors], dim=1)))

    def positions_for(self, N: int, valid: Tensor | None = None) -> Tensor:
        """Positions (N, D), or (B, N, D), interpolated for clips longer than trained."""
        learnt = self.positions[1:]  # (L, D)
        L = len(learnt)
        if N <= L:
            return learnt[:N]
        order = torch.arange(N, device=learnt.device, dtype=learnt.dtype)
        lengths = order.new_full((1, 1), N) if valid is None else valid.sum(1, keepdim=True)
        scale = torch.where(lengths > L, (L - 1) / (lengths - 1).clamp(min=1), 1.0)  # (B, 1)
        position = order * scale  # (B, N)
        below = position.clamp(max=L - 1).floor().long()
        above = (below + 1).clamp(max=L - 1)
        weight = (position - below).clamp(0, 1)[..., None]
        return torch.lerp(learnt[below], learnt[above], weight)

    def forward_layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Sequence (B, 1 + N, D) after each layer; padding gets no attention."""
        bias = None
        if valid is not None:
            padding = functional.pad(~valid, (1, 0), value=False)[:, None, None]  # CLS is valid
            bias = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
        sequences = self.encoder(x, bias)
        return [*sequences[:-1], self.last_norm(sequences[-1])]


class Decoder(nn.Module):
    """A few layers of upsampling and convolution, much lighter than the encoder (4.1, 4.4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, n_mels = config.model, config.spectrogram.n_mels
        channels = model.decoder_channels or model.channels[::-1]  # into each up layer
        shrink = 2 ** len(channels)
        self.map = (channels[0], n_mels // shrink, model.patch_frames // shrink)  # 256 x 2 x 1
        self.from_vector = nn.Linear(model.embed_dim, int(np.prod(self.map)))
        batch_norm = model.decoder_norm == "batch"
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm)
            layers += [nn.Upsample(scale_factor=2), convolution]
            layers += [nn.BatchNorm2d(after)] if batch_norm else []
            layers += [nn.ReLU(inplace=True)]
        self.up = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, vectors: Tensor) -> Tensor:
        """Turn vectors (P, D) into patches (P, 1, M, T) of mel bands."""
        maps = self.from_vector(vectors).unflatten(-1, self.map)  # (P, C, M / 32, T / 32)
        maps = self.up[:-1](maps)  # (P, C, M / 2, T / 2)
        return self.up[-1](functional.interpolate(maps, scale_factor=2))


class Head(nn.Module):
    """BERT's pooler and a linear layer, for downstream tasks (4.4)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(width, width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Turn pooled sequences (B, D) into logits or values (B, n_outputs)."""
        return self.linear(torch.tanh(self.pooler(pooled)))


class Patchifier(nn.Module):
    """Extractor, bottleneck, alignment and decoder, and the losses of the two stages (4.2).

    Parameters
    ----------
    config : Config
        Its sections `spectrogram`, `model` and `embed`. By default the paper's setting, with 8.3
        million parameters.
    seed : int
        Seed of the initial weights. The global generator is left as it was.

    Examples
    --------
    >>> import torch
    >>> model = Patchifier().eval()
    >>> patches = torch.zeros(2, 25, 1, 64, 32)
    >>> vectors, *sequences = model.forward_encoder(patches)
    >>> vectors.shape, sequences[-1].shape
    (torch.Size([2, 25, 256]), torch.Size([2, 26, 256]))
    """

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or Config()
        model, D = config.model, config.model.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            columns = model.extractor == "transformer"
            self.extractor = PatchColumnTransformer(config) if columns else FeatureExtractor(config)
            self.bottleneck = Bottleneck(
                model, layers=model.n_layers, mask_token=not model.n_predictor_layers
            )
            if model.n_predictor_layers:
                self.predictor = Bottleneck(model, layers=model.n_predictor_layers)
            self.align: nn.Module = nn.Linear(D, D)
            if model.align == "mlp":
                self.align = nn.Sequential(self.align, nn.GELU(), nn.Linear(D, D))
            self.decoder = Decoder(config)
            self.readout = Whitening(config) if config.embed.whiten else None
            initialise(self, token_std=1.0 if model.vector_norm == "layer" else 0.02)
            estimators = nn.ModuleDict({name: ESTIMATORS[name]() for name in model.estimators})
            self.estimators = estimators if model.estimators else None

    def train(self, mode: bool = True) -> "Patchifier":
        """Set training mode; a frozen extractor stays in evaluation mode."""
        super().train(mode)
        self.extractor.train(mode and any(p.requires_grad for p in self.extractor.parameters()))
        return self

    def extract(self, patches: Tensor, keep: Tensor | None = None) -> Tensor:
        """Vectors (B, N, D) of patches (B, N, 1, M, T); zeros where `keep` (B, N) is False."""
        B, N = patches.shape[:2]
        kept = masked_select(patches, keep)  # (P, 1, M, T)
        if not len(kept):
            return patches.new_zeros(B, N, self.config.model.embed_dim)
        vectors = self.extractor(kept)  # (P, D)
        return vectors.unflatten(0, (B, N)) if keep is None else masked_scatter(vectors, keep)

    def forward_encoder(
        self,
        patches: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        extract: str = "visible",
    ) -> list[Tensor]:
        """Vectors (B, N, D), then the sequence (B, 1 + N, D) after each bottleneck layer.

        Parameters
        ----------
        patches : Tensor, shape (B, N, 1, M, T)
        mask, valid : Tensor, shape (B, N), bool
            The mask token replaces masked patches.
        extract : "visible" or "all"
            Whether the extractor skips masked patches. Only its batch statistics depend on it.
        """
        keep = valid
        if mask is not None and extract == "visible":
            keep = visible(mask, valid)
        vectors = self.extract(patches, keep)
        return [vectors, *self.bottleneck(vectors, mask=mask, valid=valid)]

    def predict_masked(
        self,
        patches: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        extract: str = "visible",
    ) -> tuple[Tensor, Tensor]:
        """Context of visible patches, and prediction of all patches, (B, N, D) each.

        Without a predictor both are the bottleneck's output. With one, the bottleneck encodes only
        visible patches, as in MAE, and the predictor adds the mask tokens.
        """
        if mask is None or not self.config.model.n_predictor_layers:
            sequence = self.forward_encoder(patches, mask=mask, valid=valid, extract=extract)[-1]
            return sequence[:, 1:], sequence[:, 1:]
        keep = visible(mask, valid)  # (B, N)
        vectors = self.extract(patches, keep)  # (B, N, D)
        ids_keep, valid_keep = pack(keep)  # (B, V)
        sequence = self.bottleneck(vectors, valid=valid, ids_keep=ids_keep, valid_keep=valid_keep)
        context = scatter(sequence[-1][:, 1:], ids_keep, valid_keep, vectors.shape[1])
        return context, self.predictor(context, mask=~keep, valid=valid)[-1][:, 1:]

    def forward_decoder(self, vectors: Tensor) -> Tensor:
        """Turn predictions (P, D) into patches (P, 1, M, T) of mel bands, as stage II does."""
        return self.decoder(self.align(vectors))

    def forward_loss(self, target: Tensor, prediction: Tensor, mask: Tensor | None) -> Tensor:
        """MSE of the patches decoded from predictions (B, N, D) where `mask` (B, N) is True."""
        decoded = self.forward_decoder(masked_select(prediction, mask))  # (P, 1, M, T)
        return functional.mse_loss(decoded, masked_select(self.mel(target), mask))

    def stage_one_loss(self, patches: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """MSE of single patches, encoded and decoded without the bottleneck (4.2)."""
        vectors = self.extractor(masked_select(patches, valid))  # (P, D)
        return functional.mse_loss(self.decoder(vectors), masked_select(self.mel(target), valid))

    def stage_two_loss(
        self,
        patches: Tensor,
        target: Tensor,
        valid: Tensor | None,
        mask: Tensor,
        *,
        extract: str = "visible",
        loss_mask: Tensor | None = None,
    ) -> Tensor:
        """MSE of masked patches, predicted from the visible ones (4.2).

        `loss_mask` (B, N) chooses other patches for the loss.
        """
        _, prediction = self.predict_masked(patches, mask=mask, valid=valid, extract=extract)
        return self.forward_loss(target, prediction, mask if loss_mask is None else loss_mask)

    def mel(self, patches: Tensor) -> Tensor:
        """Mel bands of patches (..., M, T)."""
        return patches[..., : self.config.spectrogram.n_mels, :]

    def reconstruct(
        self, patches: Tensor, *, mask: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """All patches (B, N, 1, M, T) as stage II decodes them, visible ones too."""
        prediction = self.predict_masked(patches, mask=mask, valid=valid)[1]
        return self.forward_decoder(prediction.flatten(0, 1)).unflatten(0, patches.shape[:2])

    def autoencode(self, patches: Tensor) -> Tensor:
        """Patches (B, N, 1, M, T) as stage I decodes them."""
        return self.decoder(self.extract(patches).flatten(0, 1)).unflatten(0, patches.shape[:2])

    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def initialise(model: Patchifier, *, token_std: float) -> None:
    """Draw the initial weights.

    Matrices of transformers are N(0, 0.02), as BERT's. Convolutions before a ReLU are He's. CLS,
    mask token and positions start at the scale of what they replace or are added to. The rest is
    torch's.
    """
    if model.bottleneck.cls.is_meta:  # a model without memory has shapes alone
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module is not model.decoder.up[-1]:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear) and (
            name.startswith(("bottleneck", "predictor")) or ".encoder." in name
        ):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith((".cls", ".mask_token", ".positions")):
            nn.init.normal_(parameter, std=token_std)
        if name.endswith((".places", "in_proj_weight")):
            nn.init.normal_(parameter, std=0.02)
