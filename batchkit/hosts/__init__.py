"""The processes of a program on several hosts: how they meet, and how they part."""

from ._connect import connect_processes as connect_processes
from ._loss import explains_loss as explains_loss
