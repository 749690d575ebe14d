#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Has a system with chocolate-doom and an X server that speaks VNC play Doom's demos from boot on. $1: its root.
set -eu
root=$1
system=$root/etc/systemd/system

chroot "$root" useradd --create-home --shell /bin/bash player

cat >"$system/screen.service" <<'UNIT'
[Unit]
Description=A screen of 640x480, seen by VNC on port 5900

[Service]
User=player
# Nobody but the bridge's neighbours reaches the port: no password.
ExecStart=Xtigervnc :0 -geometry 640x480 -depth 24 -rfbport 5900 -SecurityTypes None -AlwaysShared -nolisten tcp
Restart=always

[Install]
WantedBy=multi-user.target
UNIT

# The window covers the screen; without a key pressed the title, the demos and the credits follow each other for ever.
cat >"$system/doom.service" <<'UNIT'
[Unit]
Description=Doom, playing its demos
BindsTo=screen.service
After=screen.service

[Service]
User=player
Environment=DISPLAY=:0 HOME=/home/player
ExecStartPre=/bin/sh -c 'until [ -S /tmp/.X11-unix/X0 ]; do sleep 0.1; done'
ExecStart=/usr/games/chocolate-doom -iwad /usr/share/games/doom/freedoom1.wad -window -width 640 -height 480 \
    -nosound -nomouse -nograbmouse
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
UNIT

mkdir -p "$system/multi-user.target.wants"
for unit in screen doom; do ln -sfn "/etc/systemd/system/$unit.service" "$system/multi-user.target.wants/$unit.service"; done
