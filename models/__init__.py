"""Latent variable models and their networks; knows layers and oracles, not Lightning."""

from .message_costs import MessageCost, NegativeLogLikelihood, SampledSuccess
from .networks import Decoder, Encoder
from .objective import pixel_cross_entropy
from .semi_supervised import ClassBound, SemiSupervisedVAE
from .signal_game import Play, Receiver, Sender, SignalGame
from .vae import BitVectorVAE, Bound

__all__ = [
    "BitVectorVAE",
    "Bound",
    "ClassBound",
    "Decoder",
    "Encoder",
    "MessageCost",
    "NegativeLogLikelihood",
    "Play",
    "Receiver",
    "SampledSuccess",
    "SemiSupervisedVAE",
    "Sender",
    "SignalGame",
    "pixel_cross_entropy",
]
