"""The network of section 4.1: feature extractor, bottleneck, decoder; the losses of section 4.2; the head of 4.4.

Shapes: B clips, N patches, M mel bands, W frames in a patch, D width of a vector. Patches come in, vectors or patches go out;
nothing here knows of audio.

Two masks, both (B, N) bool: `present` is True where there is a patch at all (False is padding), `masked` is True where the
bottleneck has to fill one in.
"""

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from patchifier.config import ModelConfig
from patchifier.nn.equivariant import ESTIMATORS
from patchifier.nn.layers import Convolution, Dropout, Standard, UpConvolution, transformer
from patchifier.nn.variants import ColumnTransformer, Distances, PitchModules, TwoScales


class FeatureExtractor(nn.Module):
    """Down modules of cascaded 3 x 3 convolutions, the first of each with stride 2 instead of pooling (4.1).

    Pitch bands, if a patch has any, go through modules of their own (:class:`PitchModules`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        modules, before = [], 1
        for channels in config.channels:
            modules.append(down_module(before, channels, config.convolutions))
            before = channels
        self.down = nn.Sequential(*modules)
        cells = (
            config.mel_bands * config.frames // 4 ** len(config.channels)
        )  # of the last map: 2 x 1
        flat = before if config.vector == "mean" else before * cells
        self.mean = config.vector == "mean"
        self.mel_bands = config.mel_bands
        if config.pitch_bands:
            self.pitch = PitchModules(config)
            flat += config.pitch_channels * config.pitch_bands // 6
        self.to_vector = nn.Identity() if flat == config.width else nn.Linear(flat, config.width)

    def forward(self, patches: Tensor) -> Tensor:
        """Turn patches (P, 1, M, W) into vectors (P, D)."""
        maps = self.down(patches[:, :, : self.mel_bands])  # (P, C, M / 32, W / 32)
        flat = (
            maps.mean((-2, -1)) if self.mean else maps.flatten(1)
        )  # (P, C) or (P, C * M * W / 1024)
        if patches.shape[2] > self.mel_bands:
            flat = torch.cat([flat, self.pitch(patches[:, 0, self.mel_bands :])], dim=1)
        return self.to_vector(flat)  # (P, D)


def down_module(before: int, channels: int, convolutions: int) -> nn.Sequential:
    """Cascaded convolutions that halve height and width; batch norm brings the bias."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += [
            Convolution(before, channels, 3, stride=1 if index else 2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        before = channels
    return nn.Sequential(*layers)


def make_extractor(config: ModelConfig) -> nn.Module:
    """The paper's, or one beyond it."""
    if config.extractor == "transformer":
        return ColumnTransformer(config)
    return (
        TwoScales(config, FeatureExtractor)
        if config.extractor == "two-scale"
        else FeatureExtractor(config)
    )


class Bottleneck(nn.Module):
    """A BERT encoder over patch vectors, with learnable positions, CLS and mask token (4.1, 4.2)."""

    def __init__(self, config: ModelConfig, *, layers: int, fills_in: bool = True) -> None:
        super().__init__()
        D = config.width
        self.cls = nn.Parameter(torch.zeros(D))
        if fills_in:
            self.mask_token = nn.Parameter(torch.zeros(D))
        self.absolute, self.plain = config.embedding != "relative", config.embedding == "plain"
        # No weights: both sides of the sum with positions start at one scale
        self.vector_norm = (
            nn.LayerNorm(D, elementwise_affine=False)
            if config.vector_norm == "layer"
            else nn.Identity()
        )
        if self.absolute:
            self.positions = nn.Parameter(torch.zeros(1 + config.positions, D))  # that of CLS first
        # BERT's epsilon
        self.norm = nn.Identity() if self.plain else nn.LayerNorm(D, eps=1e-12)
        self.dropout = nn.Identity() if self.plain else Dropout(config.dropout)
        self.encoder = transformer(config, layers)
        self.last_norm = nn.LayerNorm(D, eps=1e-12) if config.norm == "before" else nn.Identity()
        self.distances = Distances(self.encoder, config) if config.embedding == "relative" else None

    def forward(
        self,
        vectors: Tensor,
        *,
        masked: Tensor | None = None,
        present: Tensor | None = None,
        chosen: Tensor | None = None,
        there: Tensor | None = None,
    ) -> list[Tensor]:
        """Turn vectors (B, N, D) into the sequence (B, 1 + N, D) after each layer, CLS first.

        If places are `chosen` (B, V), the sequence is of those alone, and `there` (B, V) says which of them count; all, if it is None.
        """
        x = self.embed(vectors, masked, present)  # (B, 1 + N, D)
        if chosen is None:
            there = present
        else:
            x = torch.cat([x[:, :1], at(x[:, 1:], chosen)], dim=1)  # (B, 1 + V, D)
        return self.through_layers(x, None if there is None or there.all() else there, chosen)

    def through_layers(
        self, x: Tensor, there: Tensor | None = None, places: Tensor | None = None
    ) -> list[Tensor]:
        """The sequence (B, 1 + N, D) after each layer; without padding where not `there` (B, N), at `places` (B, N) of a clip, if not in order."""
        padding = bias = None
        if there is not None:
            padding = nn.functional.pad(
                ~there, (1, 0), value=False
            )  # (B, 1 + N), CLS is always there
        if self.distances is not None:
            bias = self.distances(
                torch.arange(x.shape[1] - 1, device=x.device) if places is None else places
            )  # (1 or B, H, 1 + N, 1 + N)
            padding = (
                None
                if padding is None
                else torch.zeros_like(padding, dtype=bias.dtype).masked_fill(padding, -torch.inf)
            )
        sequences = []
        for layer in self.encoder.layers:
            x = layer(x, src_mask=bias, src_key_padding_mask=padding)
            sequences.append(x)
        sequences[-1] = self.last_norm(sequences[-1])
        return sequences

    def embed(
        self, vectors: Tensor, masked: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Put mask tokens over masked vectors, CLS before them, add positions: BERT's embedding. Without positions if only distances count."""
        B, N, D = vectors.shape
        vectors = self.vector_norm(vectors)
        if masked is not None:
            vectors = torch.where(masked[..., None], self.mask_token.to(vectors.dtype), vectors)
        cls = self.cls + self.positions[0] if self.absolute and not self.plain else self.cls
        placed = vectors + self.positions_for(N, present) if self.absolute else vectors
        x = torch.cat([cls.expand(B, 1, D), placed], dim=1)  # (B, 1 + N, D)
        return self.dropout(self.norm(x))

    def positions_for(self, N: int, present: Tensor | None = None) -> Tensor:
        """Positions (N, D) of patches; in a batch that is longer than trained, (B, N, D), interpolated for each clip that is."""
        learnt = self.positions[1:]  # (L, D)
        L = len(learnt)
        if N <= L:
            return learnt[:N]
        order = torch.arange(N, device=learnt.device, dtype=learnt.dtype)
        counts = (
            order.new_full((1, 1), N) if present is None else present.sum(1, keepdim=True)
        )  # (B, 1)
        places = order * torch.where(counts > L, (L - 1) / (counts - 1).clamp(min=1), 1.0)  # (B, N)
        below = places.clamp(max=L - 1).floor().long()
        above = (below + 1).clamp(max=L - 1)
        return torch.lerp(learnt[below], learnt[above], (places - below).clamp(0, 1)[..., None])


class Decoder(nn.Module):
    """Much lighter than the encoder: a few layers of upsampling and convolution (4.1, 4.4)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.decoder_channels or config.channels[::-1]  # into each up layer
        shrink = 2 ** len(channels)
        self.map = (channels[0], config.mel_bands // shrink, config.frames // shrink)  # 256 x 2 x 1
        self.from_vector = nn.Linear(config.width, int(np.prod(self.map)))
        batch_norm = config.decoder_norm == "batch"
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            # Upsampling once had a place of its own; the weights keep the names that it gave them.
            layers += [nn.Identity(), UpConvolution(before, after, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(after)] if batch_norm else []
            layers += [nn.ReLU(inplace=True)]
        self.up = nn.Sequential(*layers, UpConvolution(channels[-1], 1))

    def forward(self, vectors: Tensor) -> Tensor:
        """Turn vectors (P, D) into patches (P, 1, M, W), of mel bands alone."""
        maps = self.from_vector(vectors).unflatten(-1, self.map)  # (P, C, M / 32, W / 32)
        return self.up(maps.contiguous(memory_format=torch.channels_last))


class Head(nn.Module):
    """BERT's pooler and a linear layer, for downstream tasks (4.4)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(width, width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, readout: Tensor) -> Tensor:
        """Turn what is read out of the sequence, (B, D), into logits or values (B, C)."""
        return self.linear(torch.tanh(self.pooler(readout)))


class Patchifier(nn.Module):
    """Extractor, bottleneck, alignment and decoder, and the two stages that train them (4.2).

    Parameters
    ----------
    config : ModelConfig
        The paper's setting by default: 8.3 million parameters.
    seed : int
        Of the initial weights; the global generator is left as it was.
    """

    def __init__(self, config: ModelConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.extractor = make_extractor(config)
            self.bottleneck = Bottleneck(
                config, layers=config.layers, fills_in=not config.predictor_layers
            )
            if config.predictor_layers:
                self.predictor = Bottleneck(config, layers=config.predictor_layers)
            self.align: nn.Module = nn.Linear(config.width, config.width)
            if config.align == "mlp":
                self.align = nn.Sequential(
                    self.align, nn.GELU(), nn.Linear(config.width, config.width)
                )
            self.decoder = Decoder(config)
            self.readout = (
                Standard(config.readout, components=config.components) if config.readout else None
            )
            initialise(self, token_std=1.0 if config.vector_norm == "layer" else 0.02)
            self.estimators = (
                nn.ModuleDict({name: ESTIMATORS[name]() for name in config.estimators})
                if config.estimators
                else None
            )
        # A CPU convolves in this order: 1.6 times faster forward and back than with kernels that are reordered each time.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub does not know it alone

    def extract(self, patches: Tensor, where: Tensor | None = None) -> Tensor:
        """Vectors (B, N, D) of patches (B, N, 1, M, W); zeros but for `where`, a mask or places among all B N, which costs nothing."""
        B, N = patches.shape[:2]
        chosen = take(patches, where)  # (P, 1, M, W)
        if not len(chosen):
            return patches.new_zeros(B, N, self.config.width)
        vectors = self.extractor(chosen)  # (P, D)
        if where is None:
            return vectors.unflatten(0, (B, N))
        return (
            vectors.new_zeros(B * N, self.config.width)
            .index_copy(0, places(where), vectors)
            .unflatten(0, (B, N))
        )

    def encode(
        self,
        patches: Tensor,
        *,
        masked: Tensor | None = None,
        present: Tensor | None = None,
        extract: str = "visible",
        visible: Tensor | None = None,
    ) -> list[Tensor]:
        """Vectors (B, N, D), then the sequence (B, 1 + N, D) after each bottleneck layer.

        The extractor need not see masked patches: their vectors are replaced by the mask token all the same. Who knows the places of the
        visible ones may give them.
        """
        where = present
        if masked is not None and extract == "visible":
            where = (
                visible
                if visible is not None
                else ~masked
                if present is None
                else present & ~masked
            )
        vectors = self.extract(patches, where)
        return [vectors, *self.bottleneck(vectors, masked=masked, present=present)]

    def stage_one_loss(self, patches: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
        """Autoencode single patches, without the bottleneck (4.2)."""
        vectors = self.extractor(take(patches, present))  # (P, D)
        return nn.functional.mse_loss(self.decoder(vectors), take(self.mel(target), present))

    def stage_two_loss(
        self,
        patches: Tensor,
        target: Tensor,
        present: Tensor | None,
        masked: Tensor,
        *,
        extract: str = "visible",
        loss_on: str = "masked",
        visible: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Fill in masked patches from the visible ones (4.2); their places may be given beside the mask, for a device that counts slowly."""
        _, filled = self.fill(
            patches, masked=masked, present=present, extract=extract, visible=visible
        )  # (B, N, D)
        where = present if loss_on == "all" else masked if hidden is None else hidden
        reconstructed = self.decoder(self.align(take(filled, where)))  # (P, 1, M, W)
        return nn.functional.mse_loss(reconstructed, take(self.mel(target), where))

    def fill(
        self,
        patches: Tensor,
        *,
        masked: Tensor | None = None,
        present: Tensor | None = None,
        extract: str = "visible",
        visible: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What is known of visible patches and what is said of all, (B, N, D) each; one and the same without a predictor.

        With one, the bottleneck sees visible patches alone, and the predictor fills in the others.
        """
        if masked is None or not self.config.predictor_layers:
            sequence = self.encode(
                patches, masked=masked, present=present, extract=extract, visible=visible
            )[-1]  # (B, 1 + N, D)
            return sequence[:, 1:], sequence[:, 1:]
        seen = ~masked if present is None else present & ~masked  # (B, N)
        vectors = self.extract(patches, seen if visible is None else visible)  # (B, N, D)
        chosen, there = side_by_side(
            seen, len(visible) if visible is not None and present is None else None
        )  # (B, V)
        sequence = self.bottleneck(vectors, present=present, chosen=chosen, there=there)[
            -1
        ]  # (B, 1 + V, D)
        known = put(sequence[:, 1:], chosen, there, like=vectors)
        return known, self.predictor(known, masked=~seen, present=present)[-1][:, 1:]

    def mel(self, patches: Tensor) -> Tensor:
        """Mel bands of patches (..., M, W)."""
        return patches[..., : self.config.mel_bands, :]

    def reconstruct(
        self, patches: Tensor, *, masked: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Patches (B, N, 1, M, W) as stage II decodes them, visible ones too."""
        vectors = self.align(self.fill(patches, masked=masked, present=present)[1])  # (B, N, D)
        return self.decoder(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])

    def autoencode(self, patches: Tensor) -> Tensor:
        """Patches (B, N, 1, M, W) as stage I decodes them."""
        return self.decoder(self.extract(patches).flatten(0, 1)).unflatten(0, patches.shape[:2])

    def parameter_count(self) -> int:
        """Learnable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def places(where: Tensor) -> Tensor:
    """Places (P,) among all B N of a mask (B, N); places stay as they are."""
    return where.flatten().nonzero()[:, 0] if where.dtype == torch.bool else where


def at(values: Tensor, chosen: Tensor) -> Tensor:
    """Values (B, V, D) at the places (B, V) of (B, N, D)."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


def put(values: Tensor, chosen: Tensor, there: Tensor | None, *, like: Tensor) -> Tensor:
    """Zeros (B, N, D) with values (B, V, D) at the places (B, V) that count: the way back from :func:`at`."""
    values = values if there is None else values * there[..., None]
    return torch.zeros_like(like, dtype=values.dtype).scatter(
        1, chosen[..., None].expand_as(values), values
    )


def side_by_side(where: Tensor, total: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Places (B, V) of what is True in each row of a mask (B, N), in order, and which of them count, (B, V).

    Rows with fewer are filled up with places that do not count. Given the `total` of a mask whose rows have as many each, all count
    (None), and a device is not waited for.
    """
    count = int(where.sum(1).max()) if total is None else total // len(where)
    chosen = where.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return chosen, where.gather(1, chosen) if total is None else None


def take(values: Tensor, where: Tensor | None) -> Tensor:
    """Values (P, ...) out of (B, N, ...): those at `where`, a mask or places, or all."""
    flat = values.flatten(0, 1)  # (B N, ...)
    return flat if where is None else flat[places(where)]


def initialise(model: Patchifier, *, token_std: float) -> None:
    """BERT's N(0, 0.02) for the bottleneck's matrices, He's for convolutions before a ReLU; the rest as torch has it.

    CLS, mask token and positions start at the scale of what they replace or are added to.
    """
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
        if name.endswith(".places"):
            nn.init.normal_(parameter, std=0.02)
        if name.endswith("in_proj_weight"):
            nn.init.normal_(parameter, std=0.02)


def draw_mask(
    generator: np.random.Generator, present: np.ndarray, ratio: float, *, ends: float = 0.0
) -> np.ndarray:
    """Choose uniformly which patches are masked (4.2); in some clips, all around a stretch.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of one uniform number for each patch.
    present : ndarray, shape (B, N), bool
        Where there is a patch.
    ratio : float
        Share of each clip's patches to mask, in (0, 1); rounded, at least one, and one is left visible where there are two.
    ends : float
        Share of clips of which one stretch stays visible.

    Returns
    -------
    ndarray, shape (B, N), bool
    """
    count = np.rint(ratio * present.sum(1)).astype(int)  # (B,)
    count = np.minimum(np.maximum(count, 1), np.maximum(present.sum(1) - 1, 1))
    scores = generator.random(present.shape)
    if ends:
        seen = present.sum(1) - count
        first = np.floor(generator.random(len(present)) * (count + 1))[
            :, None
        ]  # of the visible stretch
        place = np.arange(present.shape[1])
        inside = (place >= first) & (place < first + seen[:, None])
        scores = np.where(generator.random((len(present), 1)) < ends, inside, scores)
    scores = np.where(present, scores, 2.0)  # padding comes last
    ranks = scores.argsort(axis=1).argsort(axis=1)  # (B, N)
    return present & (ranks < count[:, None])
