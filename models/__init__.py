"""Latent variable models and their networks; knows layers and oracles, not Lightning."""

from .message_costs import MessageCost as MessageCost
from .message_costs import NegativeLogLikelihood as NegativeLogLikelihood
from .message_costs import SampledSuccess as SampledSuccess
from .networks import Decoder as Decoder
from .networks import Encoder as Encoder
from .objective import pixel_cross_entropy as pixel_cross_entropy
from .semi_supervised import ClassBound as ClassBound
from .semi_supervised import SemiSupervisedVAE as SemiSupervisedVAE
from .signal_game import Play as Play
from .signal_game import Receiver as Receiver
from .signal_game import Sender as Sender
from .signal_game import SignalGame as SignalGame
from .vae import BitVectorVAE as BitVectorVAE
from .vae import Bound as Bound
