"""Z-IL in an ordinary training loop: gradients are autograd's, bit for bit."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import pccompile

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))

pc = pccompile.compile(model)
optimizer = torch.optim.Adam(pc.parameters(), lr=3e-3)
for _ in range(30):
    loss = F.cross_entropy(pc(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

print(pccompile.check(pc, x, y, loss_fn=F.cross_entropy))
pc.eval()
with torch.no_grad():
    print(f"training accuracy {(pc(x).argmax(1) == y).float().mean():.1%}")
