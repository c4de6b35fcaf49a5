# Turns a unit into a template, for several iconik systems on one VM. install.sh does it with each unit:
#   sed -f template.sed iconik-listener.service >/etc/systemd/system/iconik-listener@.service
s|/etc/iconik-listener/config\.ini|/etc/iconik-listener/%i.ini|g
s|^After=network-online\.target iconik-listener\.service|After=network-online.target iconik-listener@%i.service|
s|^StateDirectory=.*|&/%i|
s|^Environment=ICONIK_LISTENER_COMMAND=.*|Environment="ICONIK_LISTENER_COMMAND=iconik-listener --system %i"|
s|^EnvironmentFile=.*|&\n&-%i|
s|^SyslogIdentifier=.*|&-%i|
s|^Description=.*|& (%i)|
